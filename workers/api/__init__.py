"""The gateway: HTTP and WebSocket in front of the catalogue and the refiners. Contains no model."""
