"""An image that converts one subject, as challenges and workflow systems run it."""
