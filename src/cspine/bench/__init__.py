"""How fast is it: ratios of things measured side by side on one machine, in turns."""
