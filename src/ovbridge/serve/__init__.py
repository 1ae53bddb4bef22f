"""The detector behind HTTP: `ovbridge serve`."""
