"""The server's side of its worker processes, one for each device: started, fed, watched, ended. No torch here."""
