"""What crosses the wire and what carries it: messages, codec, topology, transports, journals.

Read in this order: `base.py` (the seam), `messages.py` (what is said), `topology.py` (where it
goes), `journal/base.py` (what is remembered).
"""
