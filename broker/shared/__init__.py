"""What the processes that serve one model share beside its calls: its limits and its policy.

Read `base.py` (the promises); `memory.py` for embedded runs, `redis.py` for many processes.
"""
