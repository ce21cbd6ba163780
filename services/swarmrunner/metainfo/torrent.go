package metainfo

// Torrent describes one file as a list of hashed pieces (BEP 3).
type Torrent struct {
	Name        string
	Length      int64  // bytes of the file
	PieceLength int64  // bytes of every piece but the last
	Hashes      []byte // SHA-1 of every piece, 20 bytes each
	InfoHash    [20]byte
	Announce    []string // URLs of trackers
}
