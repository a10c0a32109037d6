"""``python -m wsi_ips.cli``, and the entry point ``wsi-ips``: the application of :mod:`wsi_ips.commands`."""

from wsi_ips.commands.application import main

if __name__ == "__main__":
    main()
