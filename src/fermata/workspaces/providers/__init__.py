"""The hosts that repositories can live on, one file each."""
