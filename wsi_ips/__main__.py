"""``python -m wsi_ips``: the same as the program ``wsi-ips``."""

from wsi_ips.commands.application import main

if __name__ == "__main__":
    main()
