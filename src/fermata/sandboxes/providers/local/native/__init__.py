"""The two programs in C, their sources and how they are built. Imported by the package's build too, so it
knows nothing but the standard library. Start reading in `wire.h`, then `launcher.c` and `init.c`."""
