"""Survival analysis: what is learned from times and events, and the figures that judge it. It reads no files.

Start with :class:`wsi_ips.survival.follow_up.FollowUp`, which all of it takes.
"""
