"""`st3 serve`: the whole method behind the OpenAI API.

Read in this order: `limits` (what holds), `requests` and `questions` (what is asked), `job`, `line`
and `worker` (the thread that owns the model), `answering` (what it asks of it), `chat` (a request's
way, and its end), `replies`, `metrics`, `app` (the routes), `server` (from the port to the last
answer).
"""
