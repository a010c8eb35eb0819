"Paper size: presets with their counts, and many processes."
