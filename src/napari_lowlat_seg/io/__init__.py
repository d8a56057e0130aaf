"""Files to arrays and back: `format_table` lists the formats, each has a module in `formats` or `chunked`."""
