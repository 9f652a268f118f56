"""The guard: watches the pressure on the operating system while models run, and throttles, freezes or kills the model that causes it.

It uses the standard library only, few modules of it, and locks its memory: it must act when the machine can do nothing else.
"""
