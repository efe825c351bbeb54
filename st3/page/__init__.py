"""`st3 page`: trimming seen in a browser. An add-on that nothing else imports; only `app` and `start`
need gradio."""
