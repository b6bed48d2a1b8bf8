"""The controller, by its rooms: the file, the documents, the store, keys and certificates, the API over real TLS."""
