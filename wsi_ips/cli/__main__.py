"""``python -m wsi_ips.cli``."""

from wsi_ips.cli.application import main

if __name__ == "__main__":
    main()
