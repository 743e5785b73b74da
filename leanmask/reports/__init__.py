"""Reading run folders back: tables, figures and the HTML page. Free of torch."""
