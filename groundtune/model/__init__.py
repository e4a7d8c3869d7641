"""From a model folder to a model that trains and answers: loading, packed attention, generation, and servers.

`opening` turns a folder, an adapter or a hub name into a model that is ready to answer.
"""
