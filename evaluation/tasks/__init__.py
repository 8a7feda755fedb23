"""Tasks for lmms-eval, where its own ones differ from what the authors ran; each file says why."""
