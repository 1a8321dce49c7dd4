"""The docs as a site (:mod:`integration.docs.site`) and its pages that are generated from code."""
