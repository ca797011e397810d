"""Commands, one thin file each; every one has a `main`."""
