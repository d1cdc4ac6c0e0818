"""What each method wants to change in a network. Planning makes new cells and changes nothing."""
