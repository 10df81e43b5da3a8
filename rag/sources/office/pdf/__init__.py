"""Reads PDF: characters and rules from pdfium, order, tables, paragraphs and headings from where they stand."""
