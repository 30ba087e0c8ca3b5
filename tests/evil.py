"""What a weights file must not bring along: a call that is made when the file is unpickled."""

from __future__ import annotations

import os


class Evil:
    """Makes a folder `executed` where the process is."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


class Evaluated:
    """Has the interpreter run a text."""

    def __reduce__(self):
        return (eval, ("__import__('os').mkdir('executed')",))
