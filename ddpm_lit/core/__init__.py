"What everything else stands on: levels, predictions, denoisers, registries, errors, files, checks."
