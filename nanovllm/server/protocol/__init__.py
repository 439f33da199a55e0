"""What goes over the wire: pydantic models of requests and responses, one file for each API. No behaviour."""
