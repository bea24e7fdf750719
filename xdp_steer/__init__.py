"""XDP steering: ESP of known (destination, SPI) leaves the kernel's path for an engine; all else stays."""
