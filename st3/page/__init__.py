"""`st3 page`: trimming seen in a browser.

An add-on that nothing else imports; `knobs`, `handlers`, `layout` and `app` alone need gradio, and
`start` once it serves.
"""
