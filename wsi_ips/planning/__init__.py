"""What a recipe will cost before it runs. Start with :mod:`wsi_ips.planning.command`."""
