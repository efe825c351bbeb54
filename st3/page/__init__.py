"""`st3 page`: trimming seen in a browser.

An add-on that nothing else imports; `handlers`, `layout`, `knobs`, `app` and `start` alone need
gradio.
"""
