"Tries every public command and loader with broken input: `python tools/campaign`."
