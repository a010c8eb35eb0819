"Data: toy worlds, digits, pictures, captions, folders of your own."
