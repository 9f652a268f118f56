"""The guard: watches what the operating system suffers while models run, and holds back, freezes or kills the model that causes it.

Standard library only, few modules of it, everything locked in memory: it must decide when the machine can do nothing else.
"""
