"""The server's side of its worker processes, one per device: started, given work, watched, ended. No torch here."""
