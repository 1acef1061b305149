# What a second request runs in a thread whose script is not to run any longer: it is nested in the script, so the
# wrapper is among its callers.
def _sidewinder_stop(interrupted):
    frame = interrupted
    while frame is not None:
        if frame.f_code.co_name == "_sidewinder":
            frame.f_locals["stop"](interrupted)
            return
        frame = frame.f_back


try:
    _sidewinder_stop(__import__("sys")._getframe().f_back)
except BaseException:
    # Whatever leaves this text is printed on the application's stderr.
    pass
