"""The measurements behind every number in this repository: `leanmask bench PROTOCOL` and `leanmask bench speed`."""
