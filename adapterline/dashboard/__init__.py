"""The web page over the lineage index, and its JSON API. Read-only: whatever it shows, the index and places have.

    command    `adapterline dashboard`
    serving    what it may be bound to, and the server
    app        routes, errors and the guard put together
    guard      who may ask, and what every answer says to a browser
    access     token, session, names of the host
    pages      HTML; `templates/`, `static/`
    api        JSON, the same answers
    metrics    what Prometheus scrapes

Links from elsewhere to its pages: `adapterline.dashboard.links`.
"""
