"""The contract of a mechanism: one file of checks for each thing that it promises."""
