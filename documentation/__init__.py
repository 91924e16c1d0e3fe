"""The documentation's site: what MkDocs is told besides ``mkdocs.yml``.

The pages are those of ``docs/``, which also ship with the package (``vmss help``). What would
repeat the code is generated from it here: the options from pytest's parser, the commands from
click's, the API and the hooks from their docstrings.
"""
