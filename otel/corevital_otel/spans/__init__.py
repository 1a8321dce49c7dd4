"""A request as a span: attributes, parent, the HTTP span around it, and what some backends need."""
