"""All that knows fd.io VPP: finding it, configuring its start, running it, talking to it."""
