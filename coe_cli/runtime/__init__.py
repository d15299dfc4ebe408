"""Effects: processes, devices, files on disk, downloads, HTTP."""
