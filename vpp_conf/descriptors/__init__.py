"""One descriptor per kind of VPP object: how it is made, changed, removed, read back and compared."""
