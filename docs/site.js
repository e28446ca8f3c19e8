// Of the documentation site: what scrolls sideways can be reached by the keyboard.
document$.subscribe(() => document.querySelectorAll(".md-typeset__scrollwrap").forEach((part) => { part.tabIndex = 0; }));
