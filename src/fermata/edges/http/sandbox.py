"""The sandbox of a session: POST and DELETE /api/sandbox, its status, its proof of life, its pause."""
