"""Is a published table of results possible?"""
