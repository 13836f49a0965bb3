"""An archive of documents on Django: each save indexes the document, and each job belongs to a tenant."""
