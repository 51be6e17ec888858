"""Strict reading of file formats: JSON, CSV, spreadsheets, XML, archives, arrays.

Whatever is wrong is a `DataError` of one line with file and row. Files that others wrote are bounded: what
a compressed file may become, how long a line may be, what XML may refer to.
"""
