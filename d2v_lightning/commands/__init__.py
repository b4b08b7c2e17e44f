"""What people type: the one floor above both packages."""
