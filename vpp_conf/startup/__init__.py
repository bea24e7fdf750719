"""VPP's startup.conf: probe the machine, plan the numbers with their reasons, render."""
