"""What people read: tables on the terminal, report files, and plots."""
